#!/usr/bin/env python3
"""Records the seeds of the data path's corpora from a Linux kernel.

    sudo tests/fuzz/record.py

Two network namespaces of its own, joined by a veth pair, talk TCP, UDP, ICMP, ARP and ND over IPv4 and
IPv6. What a packet socket sees there, with the kernel's own virtio-net headers in front, becomes the
files `kernel-*` of the corpora `cut`, `parse` and `coalesce`. The TCP payloads are kept short by a small
MTU. Nothing leaves the namespaces, and they are gone at the end.
"""

import contextlib
import ctypes
import os
import socket
import struct
import subprocess
import threading
from pathlib import Path

CORPUS = Path(__file__).resolve().parent / "corpus"
LEFT, RIGHT = f"weftrec{os.getpid()}a", f"weftrec{os.getpid()}b"
SOL_PACKET, PACKET_VNET_HDR = 263, 15
SOL_UDP, UDP_SEGMENT = 17, 103
CLONE_NEWNET = 0x40000000
FILES_PER_KIND = 3
INPUT_LEN_MAX = 6000


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def enter(name):
    with open(f"/run/netns/{name}") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def set_up():
    for name in LEFT, RIGHT:
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
    run("ip", "-n", LEFT, "link", "add", "v0", "mtu", "1280", "type", "veth",
        "peer", "name", "v0", "mtu", "1280", "netns", RIGHT)
    for name, last in (LEFT, 1), (RIGHT, 2):
        run("ip", "-n", name, "addr", "add", f"10.99.0.{last}/24", "dev", "v0")
        run("ip", "-n", name, "addr", "add", f"fd99::{last}/64", "dev", "v0", "nodad")
        run("ip", "-n", name, "link", "set", "v0", "up")
        # A tunnel of the pod's own.
        run("ip", "-n", name, "link", "add", "vx0", "type", "vxlan", "id", "5", "dev", "v0",
            "remote", f"10.99.0.{3 - last}", "dstport", "4790")
        run("ip", "-n", name, "addr", "add", f"10.98.0.{last}/24", "dev", "vx0")
        run("ip", "-n", name, "link", "set", "vx0", "up")


def serve(ready, done):
    enter(RIGHT)
    sockets = []
    for family, address in (socket.AF_INET, "10.99.0.2"), (socket.AF_INET6, "fd99::2"):
        udp = socket.socket(family, socket.SOCK_DGRAM)
        udp.bind((address, 5000))
        tcp = socket.create_server((address, 5000), family=family)
        sockets += [udp, tcp]
        threading.Thread(target=sink, args=(tcp,), daemon=True).start()
    ready.set()
    done.wait()


def sink(server):
    while True:
        connection, _ = server.accept()
        while connection.recv(65536):
            pass
        connection.sendall(b"bye")
        connection.close()


def talk():
    for family, address in (socket.AF_INET, "10.99.0.2"), (socket.AF_INET6, "fd99::2"):
        tcp = socket.create_connection((address, 5000))
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in 1, 100, 5500, 4000, 2500:
            tcp.sendall(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
        tcp.shutdown(socket.SHUT_WR)
        tcp.recv(10)
        udp = socket.socket(family, socket.SOCK_DGRAM)
        udp.sendto(b"", (address, 5000))
        udp.sendto(b"hello", (address, 5000))
        udp.sendto(b"fragment" * 400, (address, 5000))
        udp.sendto(b"refused", (address, 5001))
        udp.setsockopt(SOL_UDP, UDP_SEGMENT, 500)
        udp.sendto(b"segments" * 300, (address, 5000))
        run("ping", "-c", "2", "-i", "0.2", "-s", "40", address)
        run("ping", "-c", "1", "-s", "2000", address)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.sendto(b"in a tunnel", ("10.98.0.2", 5001))
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(("10.98.0.2", 5001))


def capture(into, stop):
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    packets.bind(("v0", 3))
    packets.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    packets.settimeout(0.3)
    stop.ready.set()
    while not stop.is_set():
        try:
            into.append(packets.recv(70000))
        except TimeoutError:
            continue


def kind_of(packet):
    header, frame = packet[:10], packet[10:]
    ethertype = struct.unpack("!H", frame[12:14])[0]
    name = {0x0800: "v4", 0x86DD: "v6", 0x0806: "arp"}.get(ethertype, "other")
    if name == "arp":
        return name
    protocol = frame[23] if name == "v4" else frame[20]
    layer4 = {1: "icmp", 58: "icmp", 6: "tcp", 17: "udp", 44: "fragment", 0: "options"}
    name += "-" + layer4.get(protocol, str(protocol))
    if b"\0\0\x05\0" in frame[46:50]:
        name += "-tunnel"
    if name.startswith("v4") and (frame[20] & 0x3F or frame[21]):
        name += "-fragment"
    if header[1]:
        name += "-gso"
    elif header[0] & 1:
        name += "-partial"
    return name


def write(corpus, name, content):
    folder = CORPUS / corpus
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"kernel-{name}").write_bytes(content)


def save(packets):
    seen, streams, is_cut = {}, {}, ""
    for packet in packets:
        if packet is None:
            is_cut = "-cut"
            continue
        kind = kind_of(packet)
        if len(packet) > INPUT_LEN_MAX:
            continue
        if "tcp" in kind or "udp" in kind:
            frame = packet[10:]
            name = kind.removesuffix("-gso").removesuffix("-partial") + is_cut
            stream = streams.setdefault(name, b"")
            record = struct.pack("!H", len(frame)) + frame
            if len(stream) + len(record) < INPUT_LEN_MAX:
                streams[name] = stream + record
        count = seen.setdefault(kind, 0)
        if count == FILES_PER_KIND:
            continue
        seen[kind] = count + 1
        write("cut", f"{kind}-{count}", packet)
        if "gso" not in kind and "partial" not in kind:
            write("parse", f"{kind}-{count}", packet[10:])
        elif count == 0:
            write("parse", kind, packet[10:])
    for kind, records in streams.items():
        write("coalesce", f"{kind}-repaired", b"\x03" + records)
        write("coalesce", f"{kind}-as-is", b"\x02" + records)
    print(seen)


def main():
    try:
        set_up()
        ready, done = threading.Event(), threading.Event()
        server = threading.Thread(target=serve, args=(ready, done), daemon=True)
        server.start()
        ready.wait(10)
        enter(LEFT)
        packets, stop = [], threading.Event()
        stop.ready = threading.Event()
        capturer = threading.Thread(target=capture, args=(packets, stop), daemon=True)
        capturer.start()
        stop.ready.wait(10)
        talk()
        # The same once more, cut as a kernel cuts.
        run("ip", "link", "set", "v0", "gso_max_segs", "1")
        packets.append(None)
        talk()
        stop.set()
        capturer.join()
        done.set()
        save(packets)
    finally:
        for name in LEFT, RIGHT:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
