"""What tests share: processes under test, clients, raw sockets, samples."""
