"""RoPE Works for ComfyUI. The nodes are imported when ComfyUI asks for them, so `import rope_core` needs no ComfyUI."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import RopeWorksExtension  # noqa: PLC0415

    return RopeWorksExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
