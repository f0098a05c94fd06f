"""What a judge sees of a picture agrees with PIL and with the published transforms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from reward_fixtures import media_for

from rewards import REWARDS
from rewards.encoders.preprocess import CLIP_MEAN, CLIP_STD, View, resize_images


@pytest.mark.parametrize("shape", [(90, 120), (300, 200), (512, 512), (31, 57)])
def test_resizing_agrees_with_pil(shape):
    """Within 1.2/255 of PIL everywhere and 0.35/255 on average; the usual single unclamped pass is far off at edges."""
    g = torch.Generator().manual_seed(0)
    edges = torch.rand(1, 3, 9, 9, generator=g).round()
    pictures = {
        "noise": torch.rand(1, 3, *shape, generator=g),
        "smooth": F.interpolate(torch.rand(1, 3, 5, 7, generator=g), shape, mode="bilinear"),
        "edges": F.interpolate(edges, shape, mode="nearest"),
    }
    for kind, x in pictures.items():
        eight_bit = (x * 255).round()
        image = Image.fromarray(eight_bit[0].byte().permute(1, 2, 0).numpy())
        theirs = torch.from_numpy(np.array(image.resize((64, 48), Image.Resampling.BICUBIC))).permute(2, 0, 1)
        error = (resize_images(eight_bit / 255, (48, 64))[0] * 255 - theirs).abs()
        assert error.max() < 1.2
        assert error.mean() < 0.35
        if kind == "edges":
            usual = F.interpolate(eight_bit, (48, 64), mode="bicubic", antialias=True)[0]
            assert (usual - theirs).abs().max() > 10


@pytest.mark.parametrize("shape", [(48, 36), (36, 48), (40, 40), (33, 200)])
def test_a_view_crops_the_centre_as_the_published_transforms_do(shape):
    """The same pixels as transformers' own CLIP image processor, to 8-bit rounding."""
    from transformers import CLIPImageProcessor

    x = (media_for(REWARDS["clip"].spec, 1).data * 255).round() / 255
    x = F.interpolate(x, shape)
    image = Image.fromarray((x[0] * 255).byte().permute(1, 2, 0).numpy())
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    theirs = CLIPImageProcessor(**size)(image, return_tensors="pt")["pixel_values"]
    ours = View((32, 32))(x)
    assert (ours - theirs).abs().max() < 1.2 / 255 / min(CLIP_STD)


@pytest.mark.parametrize("shape", [(48, 36), (33, 200)])
def test_a_squashing_view_is_siglips_own_transform(shape):
    from transformers import SiglipImageProcessor

    x = (F.interpolate(media_for(REWARDS["clip"].spec, 1).data, shape) * 255).round() / 255
    image = Image.fromarray((x[0] * 255).byte().permute(1, 2, 0).numpy())
    theirs = SiglipImageProcessor(size={"height": 32, "width": 32})(image, return_tensors="pt")["pixel_values"]
    ours = View((32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, fit="squash")(x)
    assert (ours - theirs).abs().max() < 1.2 / 255 / 0.5


@pytest.mark.parametrize("shape", [(48, 36), (36, 48), (33, 200), (500, 300)])
def test_hps_sees_what_its_authors_transform_shows_it(shape):
    """torchvision on tensors: resize, pad with zeros. As PIL resizes is the control that is far off at hard edges."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import normalize, pad
    from torchvision.transforms.functional import resize as tensor_resize

    x = F.interpolate(media_for(REWARDS["hps"].spec, 1).data.round(), shape)
    scale = 32 / max(shape)
    high, wide = (round(side * scale) for side in shape)
    seen = tensor_resize(x, [high, wide], InterpolationMode.BICUBIC)
    down, right = 32 - high, 32 - wide
    theirs = normalize(pad(seen, [right // 2, down // 2, right - right // 2, down - down // 2]), CLIP_MEAN, CLIP_STD)
    ours = View((32, 32), fit="pad", as_pil=False)
    assert (ours(x) - theirs).abs().max() < 1e-5
    assert (replace(ours, as_pil=True)(x) - theirs).abs().max() > 0.02


def test_padding_keeps_the_whole_picture_on_black():
    """HPSv2's fit: the long side to the size, zeros around before normalisation."""
    view = View((32, 32), mean=(0.0,) * 3, std=(1.0,) * 3, fit="pad")
    seen = view(torch.ones(1, 3, 10, 40))
    assert seen.shape == (1, 3, 32, 32)
    assert seen[0, 0].amax(1).nonzero().flatten().tolist() == list(range(12, 20))
    assert seen.sum() == 3 * 8 * 32
