"""Inspection: the metadata, comments, views, commands and exports of flows, and the replay of recordings.

It may import routing, config, api, formats and errors.
"""
