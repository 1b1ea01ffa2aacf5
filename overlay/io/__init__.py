"""Where the overlay touches the kernel: netlink, packet rules, plugin and gossip sockets."""
