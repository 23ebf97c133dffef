"""Codecs for body formats: compression, JSON, multipart, server-sent events. They do no I/O."""
