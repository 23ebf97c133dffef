"""mitmproxy_patches/fastpath."""
