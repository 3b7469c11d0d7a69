"""Generates rationales and answers with a vision-language model.

Reading order:

1. `generation`: the entry points. `sample_rationales` makes candidate sets, `generate_answers` the model's own answers,
   `mean_logprobs` scores given rationales.
2. `drawing`: what a candidate set lacks, keeps and draws again, whatever writes it.
3. `decoding`: continuous batching. A prompt is encoded once, and its completions are decoded together with all others.
4. `sampler`: how the next token is chosen from the logits (temperature, top-k, top-p, a seed for each completion).
5. `kv_cache`: the KV cache that works with every model. Each row has a copy of its prompt's keys and values.
6. `shared_prefix`: the KV cache that stores a prompt once for all its rows, and the attention that reads it.
7. `constraint`: which tokens a structured answer allows next, found by the bytes that `grammar` allows.
8. `prefix_reuse`: when an answer prompt is a prefix of the rationale prompt, so that one forward pass serves both.
9. `file`: the command `illume sample`, which writes candidate sets to a file and can be interrupted.

A *row* is an index into the batch dimension of the tensors that are being decoded: one completion, or several of a
prompt whose tokens are the same so far. A *column* of a KV cache is the storage of one token in each row.
"""
