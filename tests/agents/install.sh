#!/bin/sh
# Installs the coding agents that the tests drive, in the versions they were checked with, into the
# folder given. Needs npm and Python with venv. The tests find them there by OVERNIGHT_AGENTS.
set -eu

folder=$1
mkdir -p "$folder/bin"
folder=$(cd "$folder" && pwd)

npm install --prefix "$folder" --no-audit --no-fund --loglevel=error \
    @anthropic-ai/claude-code@2.1.197 \
    @openai/codex@0.169.0 \
    @google/gemini-cli@0.61.0 \
    opencode-ai@1.18.33 \
    @earendil-works/pi-coding-agent@0.74.2
for agent in claude codex gemini opencode pi; do
    ln -sf "../node_modules/.bin/$agent" "$folder/bin/$agent"
done

python3 -m venv "$folder/aider"
"$folder/aider/bin/pip" install --quiet aider-chat==0.86.2
ln -sf ../aider/bin/aider "$folder/bin/aider"
