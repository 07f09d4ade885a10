"""`python -m ebpfvpn`."""

from ebpfvpn.cli import main

if __name__ == "__main__":
    main(prog_name="ebpfvpn")
