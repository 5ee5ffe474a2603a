"""Translation of the published code's parameter names, and the configuration of its checkpoints.

A published checkpoint has no configuration: names and shapes tell which network it is. Nothing here
reads a file or needs the values of a tensor, so that a checkpoint is checked before memory is
allocated for it. Source: specification 5.1 and 5.2.
"""

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from repmamba.errors import CheckpointError, UsageError
from repmamba.network.config import WIDTH, NetworkConfig
from repmamba.network.repmamba import RepMamba

Shapes = Mapping[str, tuple[int, ...]]  # shape of each tensor, by name

BLOCK = "layers.*.residual_group.blocks.*"
RMB = f"{BLOCK}.attn_layer.*"
SS2D = f"{RMB}.ss2d"

# ours -> published; * matches one part of a name, ** all parts that follow
RULES = (
    ("conv_first.*", "conv_first.*"),
    ("embed_norm.*", "patch_embed.norm.*"),
    ("groups.*.blocks.*.cssp.*.norm.*", f"{RMB}.norm.*"),
    ("groups.*.blocks.*.cssp.*.ss2d.in_proj.*", f"{SS2D}.in_proj.*"),
    ("groups.*.blocks.*.cssp.*.ss2d.conv.dw3x3.*", f"{SS2D}.conv2d.conv.c.*"),
    ("groups.*.blocks.*.cssp.*.ss2d.conv.inner_bn.*", f"{SS2D}.conv2d.conv.bn.*"),
    ("groups.*.blocks.*.cssp.*.ss2d.conv.dw1x1.*", f"{SS2D}.conv2d.conv1.*"),
    ("groups.*.blocks.*.cssp.*.ss2d.conv.outer_bn.*", f"{SS2D}.conv2d.bn.*"),
    ("groups.*.blocks.*.cssp.*.ss2d.high_conv.dw3x3.*", f"{SS2D}.rewconv.conv.c.*"),
    ("groups.*.blocks.*.cssp.*.ss2d.high_conv.inner_bn.*", f"{SS2D}.rewconv.conv.bn.*"),
    ("groups.*.blocks.*.cssp.*.ss2d.high_conv.dw1x1.*", f"{SS2D}.rewconv.conv1.*"),
    ("groups.*.blocks.*.cssp.*.ss2d.high_conv.outer_bn.*", f"{SS2D}.rewconv.bn.*"),
    ("groups.*.blocks.*.cssp.*.ss2d.x_proj", f"{SS2D}.x_proj_weight"),
    ("groups.*.blocks.*.cssp.*.ss2d.dt_weight", f"{SS2D}.dt_projs_weight"),
    ("groups.*.blocks.*.cssp.*.ss2d.dt_bias", f"{SS2D}.dt_projs_bias"),
    ("groups.*.blocks.*.cssp.*.ss2d.A_log", f"{SS2D}.A_logs"),
    ("groups.*.blocks.*.cssp.*.ss2d.D", f"{SS2D}.Ds"),
    ("groups.*.blocks.*.cssp.*.ss2d.out_norm.*", f"{SS2D}.out_norm.*"),
    ("groups.*.blocks.*.cssp.*.ss2d.out_proj.*", f"{SS2D}.out_proj.*"),
    ("groups.*.blocks.*.cssp.*.dw1x1.*", f"{RMB}.conv.c.*"),
    ("groups.*.blocks.*.cssp.*.bn.*", f"{RMB}.conv.bn.*"),
    ("groups.*.blocks.*.norm.*", f"{BLOCK}.norm2.*"),
    ("groups.*.blocks.*.ffn.fc1.*", f"{BLOCK}.mlp.fc1.*"),
    ("groups.*.blocks.*.ffn.dw5x5.*", f"{BLOCK}.mlp.dwconv.depthwise_conv.0.*"),
    ("groups.*.blocks.*.ffn.fc2.*", f"{BLOCK}.mlp.fc2.*"),
    ("groups.*.conv.**", "layers.*.conv.**"),
    ("norm.*", "norm.*"),
    ("conv_after_body.**", "conv_after_body.**"),
    ("upsampler.conv.*", "upsample.0.*"),
    ("upsampler.conv_before.*", "conv_before_upsample.0.*"),
    ("upsampler.convs.0.*", "upsample.0.*"),
    ("upsampler.convs.1.*", "upsample.2.*"),
    ("upsampler.conv_up1.*", "conv_up1.*"),
    ("upsampler.conv_up2.*", "conv_up2.*"),
    ("upsampler.conv_hr.*", "conv_hr.*"),
    ("upsampler.conv_last.*", "conv_last.*"),
)

# last part of names that may be missing: batches seen by a normalisation, unused in inference
COUNT = "num_batches_tracked"

NAMED = 3  # names that an error lists of each kind before "and N more"


@lru_cache(maxsize=16)
def expected_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every entry of the network's state, under our names."""
    return {
        name: tuple(tensor.shape) for name, tensor in blank_network(config).state_dict().items()
    }


def blank_network(config: NetworkConfig) -> RepMamba:
    """A network whose values will be replaced; the caller's random state does not change."""
    with torch.random.fork_rng(devices=[]):
        return RepMamba(config)


@lru_cache(maxsize=16)
def published_names(config: NetworkConfig) -> dict[str, str]:
    """Our name of each entry -> its published name, one to one for every configuration.

    Raises CheckpointError for a configuration that the published code does not support.
    """
    if not (config.repconv and config.cssp):
        raise CheckpointError(
            "This network has RepConv or CSSP switched off, which the published form does not "
            "support; save it in the form of repmamba instead."
        )
    return {name: _published_name(name) for name in expected_shapes(config)}


def to_published(config: NetworkConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights from our names to the published ones. Raises CheckpointError."""
    names = published_names(config)
    return {names[name]: tensor for name, tensor in weights.items()}


def from_published(config: NetworkConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights from the published names to ours. Raises KeyError for an unknown name."""
    ours = {published: name for name, published in published_names(config).items()}
    return {ours[name]: tensor for name, tensor in weights.items()}


def _published_name(name: str) -> str:
    for pattern, template in _compiled_rules():
        if match := pattern.fullmatch(name):
            return template.format(*match.groups())
    raise KeyError(f"{name} has no rule in RULES")


@lru_cache(maxsize=1)
def _compiled_rules() -> tuple[tuple[re.Pattern[str], str], ...]:
    def pattern(ours: str) -> re.Pattern[str]:
        return re.compile(re.escape(ours).replace(r"\*\*", "(.+)").replace(r"\*", r"([^.]+)"))

    return tuple((pattern(ours), re.sub(r"\*+", "{}", published)) for ours, published in RULES)


def read_config(shapes: Shapes, *, img_range: float = 1.0) -> NetworkConfig:
    """The configuration of a published checkpoint, from its names and shapes.

    shapes: under published names, without `module.`. img_range: the only option that cannot be seen
    from the weights. Raises CheckpointError for another network, or with a position embedding.
    """
    if "absolute_pos_embed" in shapes:
        raise CheckpointError(
            "The checkpoint has a position embedding (absolute_pos_embed, option ape), which only "
            "fits one input size; train without it."
        )
    first = shapes.get("conv_first.weight", ())
    blocks = _blocks_by_group(shapes)
    if len(first) != 4 or not blocks:
        raise CheckpointError(
            f"These are weights of another network: found {_first_few(shapes)}, expected "
            "conv_first.weight and layers.0.residual_group.blocks.0."
        )
    in_chans = first[1]
    upsampler, scale = _upsampler_and_scale(shapes, in_chans)
    hidden = shapes.get("layers.0.residual_group.blocks.0.mlp.fc1.weight", (2 * WIDTH,))
    try:
        return NetworkConfig(
            scale=scale,
            in_chans=in_chans,
            depths=blocks,
            mlp_ratio=(hidden or (2 * WIDTH,))[0] / WIDTH,
            img_range=img_range,
            patch_norm="patch_embed.norm.weight" in shapes,
            upsampler=upsampler,
            resi_connection="3conv" if "layers.0.conv.0.weight" in shapes else "1conv",
        )
    except UsageError as refused:
        raise CheckpointError(
            f"The shapes of the weights fit no supported network: {refused}"
        ) from refused


def _blocks_by_group(shapes: Iterable[str]) -> tuple[int, ...]:
    """Blocks per group, from the largest indices; gaps show later as missing names."""
    blocks: dict[int, int] = {}
    for name in shapes:
        if match := re.match(r"layers\.(\d{1,3})\.residual_group\.blocks\.(\d{1,3})\.", name):
            group, block = int(match[1]), int(match[2])
            blocks[group] = max(blocks.get(group, 0), block + 1)
    return tuple(blocks.get(group, 1) for group in range(max(blocks, default=-1) + 1))


def _upsampler_and_scale(shapes: Shapes, in_chans: int) -> tuple[str, int]:
    first = shapes.get("upsample.0.weight", ())
    if "conv_up1.weight" in shapes:
        return "nearest+conv", 4
    if "conv_before_upsample.0.weight" in shapes:
        if first[:1] == (9 * WIDTH,):
            return "pixelshuffle", 3
        convs = sum(1 for name in shapes if re.fullmatch(r"upsample\.\d{1,3}\.weight", name))
        return "pixelshuffle", 2**convs
    if first:
        scale = math.isqrt(first[0] // max(in_chans, 1))
        if in_chans * scale**2 != first[0]:
            raise CheckpointError(
                f"upsample.0.weight has {first[0]} rows; for {in_chans} bands {in_chans} times a "
                "square (4, 9 or 16) is expected: these are weights of another network."
            )
        return "pixelshuffledirect", scale
    return "none", 1


def check_names_and_shapes(
    found: Shapes, expected: Shapes, *, origin: str, network: str, reason: str | None = None
) -> None:
    """Raise one CheckpointError for names that are missing, unknown or of another shape.

    found, expected: under the same names; batch counts may be missing.
    origin: the file.
    network: description of the expected network.
    reason: if the caller knows it; otherwise guessed from the names.
    """
    missing = [name for name in expected if name not in found and not name.endswith(COUNT)]
    unknown = [name for name in found if name not in expected]
    misshapen = [
        f"{name} of shape {found[name]} instead of {expected[name]}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    kinds = (("missing", missing), ("unexpected", unknown), ("of another shape", misshapen))
    faults = [f"{len(names)} {kind} ({_first_few(names)})" for kind, names in kinds if names]
    if not faults:
        return
    reason = reason or _guess(len(missing), len(unknown), len(misshapen), len(expected))
    raise CheckpointError(f"{origin} does not fit {network}: {'; '.join(faults)}. {reason}.")


def _guess(missing: int, unknown: int, misshapen: int, expected: int) -> str:
    if missing + misshapen > expected // 2:
        return "These are weights of another network"
    if missing and not unknown and not misshapen:
        return "The checkpoint is incomplete: save or download it again"
    if unknown and not missing and not misshapen:
        return "The checkpoint has more than this network: it may belong to a modified version"
    return "The checkpoint belongs to a modified version of this network"


def difference(found: NetworkConfig, expected: NetworkConfig) -> str | None:
    """How the found configuration differs from the expected one, in a sentence; None if equal."""
    if found.scale != expected.scale:
        return f"This is an x{found.scale} checkpoint, but x{expected.scale} is expected"
    if found.upsampler != expected.upsampler:
        return f"It has the upsampler {found.upsampler}, but {expected.upsampler} is expected"
    if (ours := found.resi_connection) != (theirs := expected.resi_connection):
        return f"It has the {ours} connection, but {theirs} is expected"
    if found.in_chans != expected.in_chans:
        return f"It takes {found.in_chans} bands, but {expected.in_chans} are expected"
    for option in ("depths", "mlp_ratio", "patch_norm", "repconv", "cssp"):
        ours, theirs = getattr(found, option), getattr(expected, option)
        if ours != theirs:
            return f"It has {option} {ours}, but {theirs} is expected"
    return None


def _first_few(names: Iterable[str]) -> str:
    names = list(names)
    # Names come from the file: shorten them, and escape unusual characters.
    shown = [
        name if re.fullmatch(r"[\w. ,()-]{1,160}", name) else ascii(name[:80])
        for name in names[:NAMED]
    ]
    more = len(names) - len(shown)
    return (", ".join(shown) or "none") + (f" and {more} more" if more else "")
