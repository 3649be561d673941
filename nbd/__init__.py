"""NBD for Python programs that must keep up with a disk: wire protocol, a threaded server over a `BlockDevice`, a client.

Read `device` for the interface a device implements, `server` for what is guaranteed to it, `wire` for the format. Imports
nothing but the standard library.
"""
