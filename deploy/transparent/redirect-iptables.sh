#!/bin/sh
# A transparent gateway with iptables: web traffic of the clients is redirected to the proxy, for IPv4 and IPv6.
#   ./redirect-iptables.sh eth1      eth1 is the clients' interface
#   ./redirect-iptables.sh eth1 -D   remove the rules
set -eu
clients=$1
for iptables in iptables ip6tables; do
  for port in 80 443; do
    "$iptables" -t nat "${2:--A}" PREROUTING -i "$clients" -p tcp --dport "$port" -j REDIRECT --to-ports 8080
  done
done
