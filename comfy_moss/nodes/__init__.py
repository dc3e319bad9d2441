"""ComfyUI's side: thin nodes around the pipeline.  The only folder that imports ComfyUI."""
