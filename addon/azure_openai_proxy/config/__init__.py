"""Configuration: reads options, environment and files into one immutable `Settings` value.

It may import api, formats and errors.
"""
