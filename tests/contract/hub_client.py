"""What huggingface_hub's own client makes of a server: run with any interpreter that has it, prints JSON.

python hub_client.py http://127.0.0.1:8080
"""

from __future__ import annotations

import json
import sys
from typing import Any

import huggingface_hub
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

PROMPT = "The clock"
MESSAGES = [{"role": "user", "content": "What time is it?"}]


def text_generation(client: InferenceClient) -> dict[str, Any]:
    plain = client.text_generation(PROMPT, max_new_tokens=6)
    details = client.text_generation(PROMPT, max_new_tokens=6, details=True, decoder_input_details=True, top_n_tokens=2)
    streamed = list(client.text_generation(PROMPT, max_new_tokens=6, stream=True))
    events = list(client.text_generation(PROMPT, max_new_tokens=6, stream=True, details=True))
    drawn = [
        client.text_generation(PROMPT, max_new_tokens=6, do_sample=True, seed=7, temperature=0.9, top_k=20, top_p=0.9)
        for _ in "ab"
    ]
    best = client.text_generation(PROMPT, max_new_tokens=3, best_of=2, do_sample=True, details=True)
    try:
        client.text_generation("", max_new_tokens=1)
        refused = None
    except ValidationError as error:
        refused = str(error)
    return {
        "plain": plain,
        "full": client.text_generation(PROMPT, max_new_tokens=6, return_full_text=True),
        "text": details.generated_text,
        "reason": details.details.finish_reason,
        "prefill": [token.id for token in details.details.prefill],
        "tokens": [token.text for token in details.details.tokens],
        "top": [len(each) for each in details.details.top_tokens],
        "streamed": streamed,
        "last": [events[-1].generated_text, events[-1].details.generated_tokens, events[-1].details.input_length],
        "drawn": drawn,
        "best_of": len(best.details.best_of_sequences),
        "refused": refused,
    }


def chat_completion(client: InferenceClient) -> dict[str, Any]:
    asked = {"max_tokens": 6, "temperature": 0.0}
    plain = client.chat_completion(MESSAGES, logprobs=True, top_logprobs=2, **asked)
    chunks = list(client.chat_completion(MESSAGES, stream=True, stream_options={"include_usage": True}, **asked))
    said = [choice.delta.content for chunk in chunks for choice in chunk.choices]
    return {
        "plain": plain.choices[0].message.content,
        "role": plain.choices[0].message.role,
        "reason": plain.choices[0].finish_reason,
        "usage": plain.usage.completion_tokens,
        "logprobs": len(plain.choices[0].logprobs.content),
        "top": [len(each.top_logprobs) for each in plain.choices[0].logprobs.content],
        "streamed": "".join(text for text in said if text),
        "last_usage": chunks[-1].usage.completion_tokens,
        "stream_reasons": [
            choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason
        ],
    }


if __name__ == "__main__":
    url = sys.argv[1]
    found = {
        "version": huggingface_hub.__version__,
        "text_generation": text_generation(InferenceClient(url)),
        "text_generation_by_model": InferenceClient(model=url).text_generation(PROMPT, max_new_tokens=6),
        "chat_completion": chat_completion(InferenceClient(url)),
        "chat_completion_as_openai": InferenceClient(base_url=f"{url}/v1")
        .chat.completions.create(messages=MESSAGES, max_tokens=6, temperature=0.0)
        .choices[0]
        .message.content,
    }
    print(json.dumps(found))
