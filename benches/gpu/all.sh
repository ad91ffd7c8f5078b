#!/bin/sh
# All that a card is needed for: every kernel against its twin, a study of three trials, and
# how fast the template and its PyTorch twin train. Builds nothing: pack.sh packs it. Writes results/all.json.
set -u
here=$(cd "$(dirname "$0")" && pwd)
cd "$here" || exit 1
mkdir -p results
for folder in /usr/local/cuda/lib64 /usr/local/nvidia/lib64; do
    [ -d "$folder" ] && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
done
# candle's pool spins where there are many processors.
export LD_LIBRARY_PATH CANDLE_NUM_THREADS=1

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader >results/card ||
    { echo "there is no card" >&2; exit 1; }
for name in optimizer agreement; do
    timeout 120 ./$name --test-threads 2 >results/$name.log 2>&1
    echo $? >results/$name.status
    tail -3 results/$name.log
done
if command -v compute-sanitizer >/dev/null; then
    timeout 120 compute-sanitizer --report-api-errors no ./agreement --test-threads 1 \
        attention_agrees shards elementwise cross_entropy >results/memcheck.log 2>&1
    grep 'ERROR SUMMARY' results/memcheck.log
fi

rm -rf results/study
timeout 200 sh study/run --device cuda --trials 2 --budget 12s --dir results/study --controls 0 --json \
    >results/study.log 2>&1
echo $? >results/study.status
cat results/study/results.tsv

: >results/template.jsonl
timeout 60 ./card --seconds 4 8x512.so >>results/template.jsonl
timeout 60 ./card --seconds 4 12x768.so >>results/template.jsonl
timeout 60 ./card --vocab 2048 --seq-len 256 --seconds 2 4x128.so 4x128x256.so >>results/template.jsonl
timeout 60 ./card --vocab 2048 --seq-len 256 --seconds 2 4x128-f32.so >>results/template.jsonl
cat results/template.jsonl
timeout 360 python3 benches/gpu/throughput.py --seconds 3 --limit 110 >results/pytorch.jsonl 2>results/pytorch.err
cat results/pytorch.jsonl

python3 - <<'END'
import json, pathlib

results = pathlib.Path("results")


def lines(name):
    text = (results / name).read_text() if (results / name).exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


trials = [
    {key: trial[key] for key in ("trial", "outcome", "val_bpb", "startup_seconds", "eval_seconds", "total_tokens")}
    for trial in lines("study/trials.jsonl")
]
summary = {
    "card": (results / "card").read_text().strip(),
    "kernels": {name: (results / f"{name}.status").read_text().strip() == "0" for name in ("agreement", "optimizer")},
    "study": trials,
    "template": lines("template.jsonl"),
    "pytorch": lines("pytorch.jsonl"),
}
(results / "all.json").write_text(json.dumps(summary, indent=1))
print("results/all.json")
END
