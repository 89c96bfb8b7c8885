"""vLLM by itself: run by sampling.py in vLLM's own environment, which knows nothing of sdcore.

The first line of standard input is the job (JSON); each further line asks for a repetition, which
prints its response tokens and seconds.
"""

import json
import sys
import time

from vllm import LLM, SamplingParams

if __name__ == "__main__":
    job = json.loads(sys.stdin.readline())
    llm = LLM(**job["engine"])
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    sampling = [SamplingParams(seed=seed, **job["sampling"]) for seed in job["seeds"]]
    for _ in sys.stdin:
        started = time.perf_counter()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"tokens": tokens, "seconds": seconds}), flush=True)
