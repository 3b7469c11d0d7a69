"""Loading a vision-language model (VLM), and turning prompts into its inputs.

`machine` says what the machine offers: devices, numbers, attention, weights in fewer bits. `loading` validates a model
folder or an adapter before any weights are read; `language_layers` finds the layers that LoRA changes; `vlm` loads a
model, encodes prompts with their images, and decodes tokens. `prompting` renders prompt texts from a template.
`vision_cache` keeps encoded prompts and image features, and `merged_weights` merges an adapter while texts are decoded.
"""
