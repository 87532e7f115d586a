"""The nodes, one file each."""

from comfy_api.latest import ComfyExtension, io

from .boundary import BoundaryExpandReplace
from .coarse_to_fine import CoarseToFine
from .extrapolate import RopePatchExtrapolate
from .guided_by_picture import GuidedByPicture
from .inspect import RopeInspect
from .lab_model import RopeLabModel
from .lab_video_model import RopeLabVideoModel
from .mixed_res import MixedResRegionCRPA
from .region_mask import MixedResRegionMask
from .rpe2d import RPE2DInference
from .rpe2d_crop import RPE2DResizeCrop
from .rpe2d_training import RPE2DSaveLoRA, RPE2DTrainingPatch
from .sega import RopePatchSEGA
from .style_ref import SharedAttentionStyleRef


class RopeWorksExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            RopePatchSEGA,
            RopePatchExtrapolate,
            CoarseToFine,
            GuidedByPicture,
            MixedResRegionCRPA,
            MixedResRegionMask,
            BoundaryExpandReplace,
            SharedAttentionStyleRef,
            RPE2DInference,
            RPE2DTrainingPatch,
            RPE2DResizeCrop,
            RPE2DSaveLoRA,
            RopeInspect,
            RopeLabModel,
            RopeLabVideoModel,
        ]
