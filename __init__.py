"""ComfyUI-MoSs: next-scale-prediction image models with Mixture of Scales.

ComfyUI's nodes come with the next release and will be registered here.  Until then there is nothing for ComfyUI to load;
the engine runs from the command line: `python -m comfy_moss --help`.
"""
