"""ebpfvpn: WireGuard's protocol with every data packet moved in eBPF."""

__version__ = "0.1.0"
