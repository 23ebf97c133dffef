#!/bin/sh
# A transparent gateway with iptables: what comes in from the clients' side for the web goes to the proxy, IPv4 and IPv6.
#   ./redirect-iptables.sh eth1      the interface that the clients are on
#   ./redirect-iptables.sh eth1 -D   undo it
set -eu
clients=$1
for iptables in iptables ip6tables; do
  for port in 80 443; do
    "$iptables" -t nat "${2:--A}" PREROUTING -i "$clients" -p tcp --dport "$port" -j REDIRECT --to-ports 8080
  done
done
