"""The nodes, one file each."""

from comfy_api.latest import ComfyExtension, io

from .boundary import BoundaryExpandReplace
from .extrapolate import RopePatchExtrapolate
from .lab_model import RopeLabModel
from .lab_video_model import RopeLabVideoModel
from .mixed_res import MixedResRegionCRPA
from .region_mask import MixedResRegionMask
from .sega import RopePatchSEGA
from .style_ref import SharedAttentionStyleRef


class RopeWorksExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            RopePatchSEGA,
            RopePatchExtrapolate,
            MixedResRegionCRPA,
            MixedResRegionMask,
            BoundaryExpandReplace,
            SharedAttentionStyleRef,
            RopeLabModel,
            RopeLabVideoModel,
        ]
