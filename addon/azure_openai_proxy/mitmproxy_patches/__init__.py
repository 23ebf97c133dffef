"""mitmproxy_patches."""
