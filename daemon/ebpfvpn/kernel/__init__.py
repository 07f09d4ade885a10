"""The kernel datapath: the programs of ebpf/ loaded, attached and fed through their maps."""
