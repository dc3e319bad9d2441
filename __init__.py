"""ComfyUI-MoSs: next-scale-prediction image models with Mixture of Scales."""

if __package__:  # loaded by ComfyUI; test tools import this file without a package
    from .comfy_moss.nodes import comfy_entrypoint

    WEB_DIRECTORY = "./js"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
