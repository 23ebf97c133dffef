#!/bin/bash
# A session of Codex: a shell command, and its answer. $1 is codex.js of the package @openai/codex.
CODEX_HOME=$(mktemp -d) HOME=$(mktemp -d)
export CODEX_HOME HOME
cd "$(mktemp -d)" && echo "one list" > list.txt
node "$1" exec --skip-git-repo-check --dangerously-bypass-approvals-and-sandbox \
  -c model_provider=proxy -c model_providers.proxy.name=proxy -c "model_providers.proxy.base_url=\"$OPENAI_BASE_URL\"" \
  -c model_providers.proxy.env_key=OPENAI_API_KEY -c model_providers.proxy.wire_api=responses -c model=gpt-4.1 \
  "How many lists are there? {exec_command:ls} {exec_command:cat}" < /dev/null
