"""What `helm test` does: lists the endpoint's models and asks one of them.

Without API_KEY it checks that the endpoint is up and refuses who has none.
"""
# ruff: noqa: S310, T201 -- the URL is the release's own, and `kubectl logs` shows what is printed.

import json
import os
import urllib.error
import urllib.request

ENDPOINT, KEY = os.environ["ENDPOINT"], os.environ.get("API_KEY")


def call(path, body=None):
    request = urllib.request.Request(ENDPOINT + path, data=None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if KEY:
        request.add_header("Authorization", f"Bearer {KEY}")
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


assert call("/healthz") == {"status": "ok"}
try:
    cards = call("/v1/models")["data"]
except urllib.error.HTTPError as error:
    if KEY or error.code != 401:
        raise
    print("the endpoint is up and asks for a key; test.keySecret lets this test use it")
else:
    names = [card["id"] for card in cards]
    adapters = [card["id"] for card in cards if card["parent"]]
    model = os.environ.get("ADAPTER") or (adapters or names)[0]
    assert model in names, f"{model} is not among {names}"
    prompt = [{"role": "user", "content": "Say something."}]
    answer = call("/v1/chat/completions", {"model": model, "messages": prompt, "max_tokens": 8})
    assert answer["usage"]["completion_tokens"] > 0, answer
    print(f"{len(names)} models; {model} says {answer['choices'][0]['message']['content']!r}")
