"""Names, the rendezvous' port, connections between nodes, clocks, collectives."""

from __future__ import annotations

import ipaddress
from statistics import median

from launch.doctor.findings.finding import ERROR, WARNING, ByNode, Finding, size

MOST_OFFSET_S = 1.0  # between two clocks
_SLOWEST_BYTES_PER_S = 100e6  # 1 Gbit/s Ethernet


def names(facts: ByNode) -> list[Finding]:
    """Names that a node does not resolve, or resolves to itself although another is meant."""
    found = []
    for node, one in facts.items():
        unknown = [name for name in facts if not one["names"].get(name)]
        if unknown:
            found.append(
                Finding(
                    ERROR,
                    "names",
                    (node,),
                    f"{node} cannot resolve {', '.join(unknown)}",
                    "no address",
                    "an address for every node of the job",
                    "add the nodes to DNS or to /etc/hosts of every node",
                )
            )
        if len(facts) == 1:
            continue
        # Its own name too: gloo and NCCL tell the others the address that it resolves to.
        local = {
            name: addresses[0]
            for name, addresses in one["names"].items()
            if addresses and ipaddress.ip_address(addresses[0].partition("%")[0]).is_loopback
        }
        if local:
            found.append(
                Finding(
                    WARNING,
                    "names",
                    (node,),
                    f"on {node} names of nodes are loopback addresses, which no other node reaches",
                    ", ".join(f"{name} is {address}" for name, address in sorted(local.items())),
                    "the address of an interface that other nodes reach",
                    f"remove these names from the lines 127.x of /etc/hosts on {node}; until then, "
                    "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME in `setup` of launch/site.yaml",
                )
            )
    return found


def port(facts: ByNode, head: str, number: int) -> list[Finding]:
    """The port of the rendezvous, where one was requested."""
    problem = facts.get(head, {}).get("port_problem")
    if not problem:
        return []
    return [
        Finding(
            ERROR,
            "port",
            (head,),
            f"port {number} of {head} cannot be used, so ranks cannot meet there",
            problem,
            "a port that is free",
            "choose another one, or leave it out: job scripts look for a free one. "
            f"`ss -ltnp 'sport = {number}'` on {head} shows who has it",
        )
    ]


def connections(tcp: ByNode, facts: ByNode) -> list[Finding]:
    """Pairs of nodes without a connection, and clocks that differ."""
    found = []
    for node, one in tcp.items():
        for peer, how in one["peers"].items():
            if "error" in how and peer in tcp:
                found.append(
                    Finding(
                        ERROR,
                        "network",
                        (node, peer),
                        f"{node} cannot connect to {peer}",
                        f"{how['error']} (port {how.get('port', '?')}, {peer} is "
                        f"{', '.join(facts[node]['names'].get(peer) or ['unknown'])} there)",
                        "TCP connections between all nodes, at all ports from 1024 on",
                        "open the firewall between compute nodes; check which interface the name "
                        "resolves to (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)",
                    )
                )
    return found + _clocks(tcp)


def _clocks(tcp: ByNode) -> list[Finding]:
    """Nodes whose clock is off by more than a second from the median of all."""
    nodes = list(tcp)
    head = next((node for node in nodes if tcp[node]["peers"]), None)
    if head is None:
        return []
    ahead = {head: 0.0}  # of the head's clock, seconds
    for peer, how in tcp[head]["peers"].items():
        if "offset_s" in how:
            ahead[peer] = how["offset_s"]
    # Of two nodes, the one that is not the head is named: nobody knows which of them is right.
    middle = median(ahead.values()) if len(ahead) > 2 else 0.0
    return [
        Finding(
            WARNING,
            "clocks",
            (node,),
            f"the clock of {node} is wrong, or all others are",
            f"{offset - middle:+.1f} s compared with the others",
            f"less than {MOST_OFFSET_S:g} s",
            "start chrony or ntpd on the node; logs cannot be compared, and file times mislead",
        )
        for node, offset in ahead.items()
        if abs(offset - middle) > MOST_OFFSET_S
    ]


def collectives(backend: str, facts: ByNode) -> list[Finding]:
    """An all-reduce between nodes that is slower than Ethernet of 1 Gbit/s."""
    found = []
    if len(facts) == 1:  # it measures this machine's memory and load
        return []
    for node, one in list(facts.items())[:1]:  # all ranks wait for each other
        largest = max(one["all"], key=int)
        rate = one["all"][largest]["bus_bytes_per_s"]
        if rate < _SLOWEST_BYTES_PER_S:
            found.append(
                Finding(
                    WARNING,
                    "collectives",
                    (node,),
                    f"all-reduce by {backend} is slow",
                    f"{size(rate)}/s at {size(int(largest))}",
                    f"at least {size(_SLOWEST_BYTES_PER_S)}/s",
                    "name the fast interface: NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME in `setup` "
                    "of launch/site.yaml; NCCL_DEBUG=INFO shows what NCCL uses",
                )
            )
    return found
