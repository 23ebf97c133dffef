"""The forms by which keys and passwords are recognised in texts: by themselves, or by the words before them."""

from __future__ import annotations

import re

__all__ = ["COOKIE", "COOKIES", "HEADERS", "IN_CONTEXT", "SECRETS", "SHORTEST_MEMBER", "is_secret_member"]

SHORTEST_MEMBER = 8
"""Characters of a member that counts as a secret by its name; passwords may be shorter."""
LONGEST_NAME = 60

_NAMES = (
    r"(?:api|access|account|auth|client|consumer|encryption|master|private|secret|shared|signing|storage|subscription|webhook)"
    r"[ _-]?(?:access[ _-]?)?(?:key|secret|token)|password|passwd|passphrase|pwd|secret|token|bearer|credential|signature|sig"
    r"|sharedaccesskey|accountkey|ocp-apim-subscription-key|x-api-key|api-key"
)
_START = r"(?:(?<!\w)|(?<=\\[bfnrt])|(?<=\\u[0-9A-Fa-f]{4})|(?<=%[0-9A-Fa-f]{2}))"
"""The start of a word, also after an escape in JSON or in a URL."""
_NO_VALUE = r"(?!(?i:true|false|none|null|yes|no|[0-9]{1,4})(?![^\s\"',;)}\]]))"
# What a text with such a key has in any case, and the pattern of the key.
_FORMS = (
    (
        "-----BEGIN",
        (
            r"-----BEGIN [A-Z0-9 ]{0,40}(?:PRIVATE KEY|CERTIFICATE)(?: BLOCK)?-----"
            r"(?:(?!-----END)[\s\S]){0,20000}(?:-----END [A-Z0-9 ]{0,60}-----)?"
        ),
    ),
    ("PuTTY-User-Key", r"PuTTY-User-Key-File-[0-9](?:(?!PuTTY-User)[\s\S]){0,8000}?Private-MAC: [0-9a-f]+"),
    ("eyJ", r"eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*)*"),  # JWT
    ("sk-", r"sk-(?:ant-|proj-|svcacct-|admin-|or-v1-|None-|lf-)?[A-Za-z0-9_-]{12,}"),  # OpenAI and those like it
    ("pk-lf-", r"pk-lf-[A-Za-z0-9-]{12,}"),
    ("sess", r"sess[-_][A-Za-z0-9]{20,}"),
    ("ek_", r"ek_[A-Za-z0-9]{20,}"),
    ("", r"[0-9a-f]{32}(?!\w)"),  # Azure
    ("JQQJ99", r"[A-Za-z0-9]{40,60}JQQJ99[A-Za-z0-9+/=]{6,40}"),  # Azure, since 2024
    ("AAAAAC", r"[A-Za-z0-9]{40,60}AAAAAC[A-Za-z0-9+/=]{6,40}"),
    ("ACOG", r"[A-Za-z0-9]{40,60}ACOG[A-Za-z0-9+/=]{6,40}"),
    ("AzSe", r"[A-Za-z0-9]{40,60}AzSe[A-Za-z0-9+/=]{6,40}"),
    ("==", r"(?<![+/=])[A-Za-z0-9+/]{86}==(?![A-Za-z0-9+/=])"),  # a storage account
    ("Q~", r"[A-Za-z0-9_~.-]{3}[78]Q~[A-Za-z0-9_~.-]{31,34}"),  # Entra ID
    *((name, rf"{name}[0-9A-Z]{{12,}}") for name in ("AKIA", "ASIA", "ABIA", "ACCA", "AROA", "AIDA")),  # AWS
    *((f"gh{kind}_", rf"gh{kind}_[A-Za-z0-9]{{20,}}") for kind in "pousr"),  # GitHub
    ("github_pat_", r"github_pat_[A-Za-z0-9_]{20,}"),
    ("gl", r"gl(?:pat|ptt|dt|rt|soat|cbt|ft)-[A-Za-z0-9_-]{16,}"),  # GitLab
    ("xox", r"xox[abeoprs]-[A-Za-z0-9-]{8,}"),  # Slack
    ("discord", r"https://(?:[a-z]{2,10}\.)?discord(?:app)?\.com/api/webhooks/[A-Za-z0-9/_-]{8,}"),
    ("xapp-", r"xapp-[0-9]-[A-Za-z0-9-]{8,}"),
    ("hooks.slack", r"https://hooks\.slack\.com/[A-Za-z0-9/_-]{8,}"),
    ("AIza", r"AIza[0-9A-Za-z_-]{30,}"),  # Google
    ("ya29.", r"ya29\.[0-9A-Za-z_-]{16,}"),
    ("GOCSPX-", r"GOCSPX-[A-Za-z0-9_-]{16,}"),
    ("_live_", r"[srp]k_live_[0-9A-Za-z]{10,}"),  # Stripe
    ("_test_", r"[srp]k_test_[0-9A-Za-z]{10,}"),
    ("whsec_", r"whsec_[A-Za-z0-9+/=]{10,}"),
    ("npm_", r"npm_[A-Za-z0-9]{30,}"),
    ("pypi-", r"pypi-[A-Za-z0-9_-]{16,}"),
    ("hf_", r"hf_[A-Za-z0-9]{20,}"),
    ("lsv2_", r"lsv2_(?:pt|sk)_[A-Za-z0-9_]{20,}"),  # LangSmith
    ("fw_", r"fw_[A-Za-z0-9]{20,}"),  # Fireworks
    ("gsk_", r"gsk_[A-Za-z0-9]{20,}"),
    ("xai-", r"xai-[A-Za-z0-9]{20,}"),
    ("SG.", r"SG\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    ("key-", r"key-[0-9a-f]{32}"),
    ("", r"(?:SK|AC)[0-9a-f]{32}(?!\w)"),  # Twilio
    ("_v1_", r"do[opr]_v1_[a-f0-9]{32,}"),
    ("dapi", r"dapi[a-f0-9]{32}"),
    ("dckr_pat_", r"dckr_pat_[A-Za-z0-9_-]{16,}"),
    ("hvs.", r"hvs\.[A-Za-z0-9_-]{16,}"),
    ("pplx-", r"pplx-[A-Za-z0-9]{16,}"),
    ("shp", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{16,}"),
    ("sq0", r"sq0[a-z]{3}-[A-Za-z0-9_-]{16,}"),
    ("lin_api_", r"lin_api_[A-Za-z0-9]{16,}"),
    ("figd_", r"figd_[A-Za-z0-9_-]{16,}"),
    ("ntn_", r"ntn_[A-Za-z0-9]{16,}"),
    ("secret_", r"secret_[A-Za-z0-9]{20,}"),
    ("sbp_", r"sbp_[a-f0-9]{16,}"),
    ("r8_", r"r8_[A-Za-z0-9]{20,}"),
    ("nvapi-", r"nvapi-[A-Za-z0-9_-]{16,}"),
    ("glsa_", r"glsa_[A-Za-z0-9_]{16,}"),
    ("NRAK-", r"NRAK-[A-Z0-9]{16,}"),
    ("PMAK-", r"PMAK-[a-f0-9-]{16,}"),
    ("fo1_", r"fo1_[A-Za-z0-9_-]{16,}"),
    ("atlasv1.", r"atlasv1\.[A-Za-z0-9_-]{16,}"),
    ("AGE-SECRET", r"AGE-SECRET-KEY-1[A-Z0-9]{16,}"),
    ("EAAC", r"EAAC[A-Za-z0-9]{20,}"),
    (":AA", r"[0-9]{8,10}:AA[A-Za-z0-9_-]{32,}"),  # Telegram
    (".", r"[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,}"),  # Discord
)
SECRETS = tuple(
    (needle, re.compile((_START.replace(r"(?<!\w)", r"(?<![^\W_])") if needle else _START) + pattern)) for needle, pattern in _FORMS
)
_LONG_VALUE = r"(?<=\")[^\"\\\n]{4,512}(?=\\*\")|(?<=')[^'\\\n]{4,512}(?=\\*')|[^\s\"'`,;&<>\\\[\]{}()]{4,512}"
_IN_URL = re.compile(
    r"(?P<before>\b[A-Za-z][A-Za-z0-9+.-]{1,30}://(?:[^\s/:@\"'<>]{0,200}:)?)"
    r"(?P<value>(?<=:)[^\s/\"'<>]{1,200}|[^\s/:@\"'<>\[\]]{16,200})(?=@)"
)
_NAMED = re.compile(
    rf"(?P<before>(?:{_NAMES})\\*[\"']?\s{{0,5}}(?:[:=]|=>)\s{{0,5}}(?:b(?=[\"']))?(?:\"\"\"|'''|\\*[\"']?)){_NO_VALUE}"
    rf"(?P<value>{_LONG_VALUE}|\{{[^{{}}\n]{{4,200}}\}}+)",
    re.IGNORECASE,
)
_SCHEME = re.compile(
    r"(?P<before>authorization\\*[\"']?\s{0,5}[:=]\s{0,5}\\*[\"']?[a-z]{3,20}[ \t]{1,3}"
    r"|\bbasic[ \t]{1,3}(?=[A-Za-z+/]*(?:[0-9=]|(?-i:[a-z][A-Z])))"  # "basic functionality" is none
    r"|\bbearer[ \t]{1,3}(?=[A-Za-z]*(?:[0-9=]|[._~+/-][A-Za-z0-9]|(?-i:[a-z][A-Z]))))"
    r"(?P<value>[A-Za-z0-9._~+/=-]{12,})",
    re.IGNORECASE,
)
_QUOTE = r"\\*[\"']?"
_VALUE = (
    r"(?P<value>(?<=\")[^\"\\\n$<{\[*][^\"\\\n]{0,511}(?=\\*\")|(?<=')[^'\\\n$<{\[*][^'\\\n]{0,511}(?=\\*')"
    r"|[^\s\"'`,;&|<>$*\\()\[\]{}-][^\s\"'`;&|<>\\]{0,511})"
)
"""A value in a shell's command; no variable, no option and no example such as `<password>`."""
_NO_OPTION_VALUE = (
    r"(?!id=|(?:and|are|argument|arguments|as|at|by|can|file|flag|flags|followed|for|from|has|if|in|instead|is|may|must|of|on|option|options|or"
    r"|parameter|prompt|prompts|should|switch|that|the|then|to|value|was|when|will|with|without)\b)"
)
"""Words that follow the name of an option in prose."""
_SYSTEMS = (
    "admin|auth|basic|db|database|email|ftp|http|imap|ldap|login|mail|mongo|mysql|pg|postgres|proxy|rabbitmq|redis|root|smtp|ssh|user"
)
# Secrets (`value`) that the text before them announces.
IN_CONTEXT = (
    _IN_URL,
    _SCHEME,
    _NAMED,
    re.compile(  # DB_PASS=x, PGPASSWORD=x, "db_pass": "x"
        rf"(?P<before>\b(?:(?:[A-Z0-9]{{1,30}}_){{1,6}}(?:PASS|PASSWD|PW|PWD)|[A-Z0-9_]{{0,40}}PASSWORD|(?:{_SYSTEMS})_(?:pass|pw))"
        rf"{_QUOTE}[ \t]{{0,5}}[:=][ \t]{{0,5}}{_QUOTE}){_NO_VALUE}{_VALUE}"
    ),
    re.compile(  # password: x, as a line of YAML
        rf"^(?P<before>[ \t]{{0,40}}(?:-[ \t]{{1,5}})?{_QUOTE}[\w.-]{{0,40}}(?:password|passwd|passphrase|_pass){_QUOTE}:[ \t]{{1,5}}"
        rf"{_QUOTE}){_NO_VALUE}{_VALUE}(?={_QUOTE},?[ \t]{{0,40}}(?:#|\r?$))",
        re.IGNORECASE | re.MULTILINE,
    ),
    re.compile(  # --password x
        r"(?P<before>(?<![\w-])--(?!no-|ask-)(?:[a-z]{1,20}-){0,4}(?:password|passwd|passphrase|pass|token|secret|(?:api|access|account|secret)-key)"
        rf"(?:=|[ \t]{{1,5}}|{_QUOTE},[ \t]{{0,5}}){_QUOTE}){_NO_OPTION_VALUE}{_VALUE}"
    ),
    re.compile(  # mysql -px; after a space, the name of a database is more likely than a password
        r"(?P<before>\b(?:mysql|mariadb)[\w-]{0,20}[ \t](?:(?!\bmysql|\bmariadb)[^\n|;&]){0,300}?(?<=[ \t])-p"
        rf"(?:{_QUOTE}(?=\S)|[ \t]{{1,5}}{_QUOTE}(?=[^\s]{{0,100}}[0-9A-Z!@#%^+=?]))){_VALUE}"
    ),
    re.compile(  # sshpass -p x, docker login -p x
        r"(?P<before>\b(?:sshpass|mongo(?:sh|dump|restore|export|import)?|(?:docker|podman|az|oc|registry)[ \t]login)[ \t]"
        rf"(?:(?!\bsshpass|\bmongo|[ \t]login[ \t])[^\n|;&]){{0,300}}?(?<=[ \t])-p[ \t=]{{0,5}}{_QUOTE}){_VALUE}"
    ),
    re.compile(  # curl -u user:x
        r"(?P<before>\bcurl[ \t](?:(?!\bcurl[ \t])(?:[^\n]|(?<=\\)\n)){0,300}?"
        rf"(?<=[ \t])(?:-[A-Za-z]{{0,6}}[uU]|--user|--proxy-user)[ \t=]{{0,5}}{_QUOTE}[^\s:\"'$\\]{{1,200}}:){_VALUE}"
    ),
    re.compile(  # <password>x</password>
        rf"(?P<before><(?:[\w.:-]{{0,40}})(?:{_NAMES})>\s{{0,5}}){_NO_VALUE}(?P<value>[^\s<>]{{4,512}})(?=\s{{0,5}}</)",
        re.IGNORECASE,
    ),
    re.compile(  # {"name": "DB_PASSWORD", "value": "x"}, <add key="password" value="x"/>
        rf"(?P<before>\b(?:name|key){_QUOTE}\s{{0,5}}[:=]\s{{0,5}}{_QUOTE}[\w.-]{{0,40}}?(?:{_NAMES}){_QUOTE}[\s,]{{1,40}}"
        rf"{_QUOTE}value{_QUOTE}\s{{0,5}}[:=]\s{{0,5}}{_QUOTE}){_NO_VALUE}(?P<value>{_LONG_VALUE})",
        re.IGNORECASE,
    ),
    re.compile(  # (b"api-key", b"x")
        rf"(?P<before>[\"'](?:(?:x-)?api-key|ocp-apim-subscription-key|(?:proxy-)?authorization)\\*[\"'],\s{{0,5}}b?\\*[\"'])(?P<value>{_LONG_VALUE})",
        re.IGNORECASE,
    ),
    re.compile(  # setx API_KEY x
        rf"(?P<before>\b(?:setx|set[ \t]-[A-Za-z]{{1,3}})[ \t]{{1,5}}\w{{0,40}}?(?:{_NAMES})[ \t]{{1,5}}{_QUOTE})(?P<value>{_LONG_VALUE})",
        re.IGNORECASE,
    ),
    re.compile(  # Authorization: x
        rf"(?P<before>authorization{_QUOTE}[ \t]{{0,5}}:[ \t]{{0,5}}{_QUOTE}"
        r"(?:(?:apikey|basic|bearer|digest|negotiate|token)[ \t]{1,3}(?=[^\s\"'\\]{4})|(?=[^\s\"'\\]{8})))"
        r"(?P<value>(?=[^\s\"'\\]{0,500}[0-9=])[^\s\"'\\,;\[]{4,4096})",
        re.IGNORECASE,
    ),
)
_PAIR = r"[\w!#$%&*+.^|~-]{1,100}=[^\s;,\"'\\]{1,4096}"
COOKIES = re.compile(
    rf"(?:\b(?:set-)?cookie{_QUOTE}[ \t]{{0,5}}[:=][ \t]{{0,5}}|--cookie[ \t=]{{1,5}}){_QUOTE}"
    rf"{_PAIR}(?:;[ \t]{{0,5}}(?:{_PAIR}|[\w-]{{1,100}})){{0,60}}",
    re.IGNORECASE,
)
"""The header of cookies, or the option of a command, with its cookies."""
COOKIE = re.compile(
    r"(?P<before>(?<![\w!#$%&*+.^|~=-])(?!(?:domain|expires|max-age|path|priority|samesite|version)=)[\w!#$%&*+.^|~-]{1,100}=)"
    r"(?P<value>[^\s;,\"'\\]{1,4096})",
    re.IGNORECASE,
)
"""One cookie in them, and no attribute of a cookie."""
HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "set-cookie"})
"""Members that are searched together with their name."""
_MEMBER = re.compile(rf"[A-Za-z0-9_-]{{0,20}}(?:{_NAMES})", re.IGNORECASE)
_PASSWORD = re.compile(r"[A-Za-z0-9_-]{0,20}(?:password|passwd|passphrase|_pass)", re.IGNORECASE)
_NO_PASSWORD = frozenset(
    {"", "boolean", "false", "hidden", "none", "null", "number", "optional", "password", "required", "string", "text", "true"}
)


def is_secret_member(name: str, value: str) -> bool:
    """Whether a member of a document is a secret because of its name."""
    if len(name) > LONGEST_NAME:
        return False
    if len(value) >= SHORTEST_MEMBER and _MEMBER.fullmatch(name):
        return True
    return value.lower() not in _NO_PASSWORD and _PASSWORD.fullmatch(name) is not None
