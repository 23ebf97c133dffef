"""Fifty secrets and personal details as they occur in conversations, each with the text around it. None of them is real."""

from __future__ import annotations

__all__ = ["DETAILS", "KEYS", "OPTIONS", "PLANTED"]

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def _letters(count: int, start: int = 0) -> str:
    """Letters and digits; put together here, so that no scanner takes this file for a leak."""
    return ((_LETTERS[start:] + _LETTERS) * 3)[:count]


def _hex(count: int, start: int = 3) -> str:
    return ("0123456789abcdef" * 8)[start : start + count]


_PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{_letters(60)}\n{_letters(44, 5)}\n-----END RSA PRIVATE KEY-----"
_JWT = f"eyJhbGciOiJIUzI1NiJ9.{_letters(30)}.{_letters(40, 9)}"

# the secret, and the text with it
KEYS: list[tuple[str, str]] = [
    (secret, text.format(secret))
    for secret, text in [
        ("sk-" + _letters(48), "my key is {}, do not share it"),
        ("sk-proj-" + _letters(60, 3), '{{"api": "{}"}}'),
        ("sk-ant-api03-" + _letters(50, 7), "export KEY={}"),
        (_hex(32), "api-key: {}"),
        (_hex(32, 8), "the resource's key {} works"),
        (_letters(52, 11) + "JQQJ99BKAC" + _letters(22, 2), "Azure gave me {}"),
        (_letters(86, 4) + "==", "DefaultEndpointsProtocol=https;AccountName=acct;AccountKey={};EndpointSuffix=core.windows.net"),
        (_letters(43, 6) + "=", "Endpoint=sb://bus/;SharedAccessKeyName=Root;SharedAccessKey={}"),
        (_letters(40, 8) + "%3D", "https://acct.blob/x?sv=2024&sig={}&se=2026"),
        ("Xa28Q~" + _letters(33, 1), "client secret {}"),
        (_JWT, "Authorization: Bearer {}"),
        (_JWT.replace("NiJ9", "NiJ8"), "the token {} has expired"),
        (_PEM, "here it is:\n{}\nbye"),
        (_PEM.replace("RSA ", "OPENSSH ").replace("\n", "\\n"), '{{"key": "{}"}}'),
        ("AKIA" + _letters(16).upper(), "aws id {}"),
        (_letters(40, 13), "aws_secret_access_key = {}"),
        ("ghp_" + _letters(36), "git clone with {}"),
        ("github_pat_" + _letters(60), "{}"),
        ("glpat-" + _letters(20), "gitlab {}"),
        (_letters(68, 3), "https://discord.com/api/webhooks/123456789012345678/{}"),
        ("lsv2_pt_" + _hex(32) + "_" + _hex(10), "LangSmith {}"),
        ("fw_" + _letters(24), "Fireworks {}"),
        ("xoxb-123456789012-" + _letters(24), "slack {}"),
        ("AIza" + _letters(35), "maps key {}"),
        ("sk_live_" + _letters(24), "stripe {}"),
        ("whsec_" + _letters(32), "webhook {}"),
        ("npm_" + _letters(36), "//registry/:_authToken={}"),
        ("pypi-" + _letters(60), "twine -p {}"),
        ("hf_" + _letters(34), "hub {}"),
        ("gsk_" + _letters(40), "groq {}"),
        ("SG." + _letters(22) + "." + _letters(43), "mail {}"),
        ("dapi" + _hex(32), "databricks {}"),
        ("hvs." + _letters(24), "vault {}"),
        ("123456789:AA" + _letters(33), "bot {}"),
        ("s3cr3t-Pa55", "postgres://app:{}@db/prod"),
        ("hunter2hunter2", "redis://:{}@cache:6379/0"),
        ("correct-horse", "password: {}"),
        ("Tr0ub4dor", '{{"password": "{}"}}'),
        ("opensesame99", "PGPASSWORD={} psql"),
        ("a pass; word <1>", 'password: "{}"'),
        ("onlysmallletters", "Authorization: Token {}"),
        ("YWxhZGRpbjpvcGVu", "it sends Basic {}"),
        ("opaquetoken.parts", "it sends Bearer {}"),
        ("sk-" + _letters(40, 25), "litellm_{}"),
        ("b pass; word <1>", 'run {{"command": "login --password=\\"{}\\""}}'),
        ("p;w=1234", "Server=db;Password={{{}}};Encrypt=yes"),
        (_letters(20, 17), "https://{}@git.corp/repo"),
        ("sk-" + _letters(40, 21), "?key=%22{}%22"),
        ("quietriver7", "DB_PASS={} make run"),
        ("slowmountain8", "run --password {} --verbose"),
        ("greenfield9", "mysql -u root -p{} shop"),
        ("bluewater10", "$ curl -u me:{} https://registry/x"),
        ("oldharbour11", "> Cookie: theme=dark; sid={}; lang=en"),
    ]
]

DETAILS: list[tuple[str, str]] = [
    (detail, text.format(detail))
    for detail, text in [
        ("alice.smith@example.com", "write to {} please"),
        ("bob+test@mail.example.co.uk", "<{}>"),
        ("jürgen@example.de", "or {}"),
        ("carol%40example.org", "https://x/?user={}"),
        ("10.20.30.40", "ping {}"),
        ("203.0.113.9", "from {}:443"),
        ("2001:db8::8a2e:370:7334", "via {}"),
        ("fe80::1ff:fe23:4567:890a", "[{}]"),
        ("db-prod-01.corp.internal", "connect to {} now"),
        ("wiki.example.com", "see https://{}/page"),
        ("/home/alice/projects/secret-plan/notes.txt", "open {}"),
        ("/Users/Alice Smith/Documents/tax.pdf", "in {}"),
        ("C:\\Users\\alice\\Desktop\\salary.xlsx", "file {}"),
        ("\\\\fileserver\\finance\\2026", "on {}"),
        ("~/.ssh/id_ed25519", "cat {}"),
        ("/home/alice/plan.txt", "open file://{}"),
        ("/srv/alice/data", "PATH=/usr/bin:{}"),
        ("2001:db8::1f", "peer {}: down"),
        ("git.corp.internal", "ssh deploy@{}"),
        ("example.xn--p1ai", "see {}"),
        ("EMP-004711", "employee {} agreed"),
        ("+49 170 1234567", "call {}"),
    ]
]

OPTIONS = ["emails,ips,hosts,paths", r"EMP-\d+", r"\+\d\d \d+ \d+"]
"""The options of `--redact` with which the details are removed."""

PLANTED = [*KEYS, *DETAILS]
