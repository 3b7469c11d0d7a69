"""Loading a vision-language model (VLM), and turning prompts into its inputs.

`loading` validates a model folder or an adapter before any weights are read; `vlm` loads them, encodes prompts with
their images, and decodes tokens. `prompting` renders prompt texts from a template. `vision_cache` keeps encoded prompts
and image features, and `merged_weights` merges an adapter for the duration of decoding.
"""
