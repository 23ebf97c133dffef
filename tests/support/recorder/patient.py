"""A script of mitmproxy that gives Redis more time than the proxy does: a busy machine is no broken one."""

from azure_openai_proxy.accounting.shared import deadlines, link

deadlines.REPLY_TIMEOUT = link.REPLY_TIMEOUT = 20.0
