"""The userspace path: the daemon itself moves the packets, between TUN device and UDP sockets."""
