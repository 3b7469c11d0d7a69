"""Samples from model servers that speak OpenAI's chat completions, such as vLLM. No torch, and no HTTP of its own.

Reading order:

1. `errors`: what can go wrong, by what helps: waiting, another prompt, or an admin.
2. `client`: JSON requests to one server: how many at a time, trying again, giving up. Whoever uses it brings `Send`,
   which speaks HTTP.
3. `messages`: prompts as messages, with pictures as `data:` URLs.
4. `completions`: a chat completion: its request, and what its answer says.
5. `probe`: finds out what a server can do.
6. `sampling`: candidate sets, by what the server can do.
7. `adapters`: which models a server lists, and loading and unloading adapters while it runs.
"""
