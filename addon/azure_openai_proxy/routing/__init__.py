"""Routing: the choice of the backend for each attempt, failover, repair of rejected requests, and Entra ID tokens.

It may import config, api, formats and errors.
"""
