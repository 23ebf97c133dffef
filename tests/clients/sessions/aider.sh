#!/bin/bash
# Two questions to aider in one session. $1 is the program.
HOME=$(mktemp -d)
export HOME OPENAI_API_BASE="$OPENAI_BASE_URL"
cd "$(mktemp -d)" && echo "one list" > list.txt
printf '/ask How many lists are there?\n/ask And how many boxes?\n/exit\n' | "$1" --model openai/gpt-4o --weak-model openai/gpt-4o-mini \
  --no-git --yes-always --no-check-update --no-show-release-notes --analytics-disable --no-show-model-warnings --no-fancy-input --no-pretty \
  --map-tokens 0 list.txt
