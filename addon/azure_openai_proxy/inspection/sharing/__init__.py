"""Threads as files to share: HTML, Markdown, text and JSONL, without keys and, by choice, without personal details."""
