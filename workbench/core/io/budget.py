"""How much one file may hold once it is decoded. It is looked up in the file's header and counted while it is read."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.core.errors import BadInput

PICTURE_PIXELS, CLIP_PIXELS, CLIP_FRAMES, SOUND_VALUES = 100_000_000, 300_000_000, 20_000, 256_000_000
SLOWEST = 48_000  # samples a second as which a slower sound is counted: models bring it to such a rate
FASTEST = 1_000_000


@dataclass(frozen=True)
class Budget:
    """The largest picture, clip and sound that is read. Beyond it, a file is one sentence."""

    picture_pixels: int = PICTURE_PIXELS
    clip_pixels: int = CLIP_PIXELS  # of all frames as they are shown: a picture that is held counts as often as it is
    clip_frames: int = CLIP_FRAMES
    sound_values: int = SOUND_VALUES  # of all channels

    def check_picture(self, name: object, width: int, height: int) -> None:
        """Raises BadInput for a picture that is empty or too large."""
        if not width * height:
            raise BadInput(f"{name}: a picture of {width} x {height} pixels shows nothing")
        if width * height > self.picture_pixels:
            raise BadInput(
                f"{name}: {width} x {height} are {width * height / 1e6:,.0f} megapixels, and a picture may have "
                f"{self.picture_pixels / 1e6:,.0f}; scale it down"
            )

    def check_clip(self, name: object, frames: int, width: int, height: int) -> None:
        """Raises BadInput for a clip whose frames are empty, too many or too large."""
        if not width * height:
            raise BadInput(f"{name}: a clip of {width} x {height} pixels shows nothing")
        if frames * width * height > self.clip_pixels:
            raise BadInput(
                f"{name}: {frames:,} frames of {width} x {height} are {frames * width * height / 1e6:,.0f} megapixels, "
                f"and a clip may have {self.clip_pixels / 1e6:,.0f}; cut it shorter or scale it down"
            )
        if frames > self.clip_frames:
            raise BadInput(f"{name}: {frames:,} frames, and a clip may have {self.clip_frames:,}; cut it shorter")

    def check_sound(self, name: object, samples: int, channels: int, rate: float) -> None:
        """Raises BadInput for a sound that is too long, or whose rate can't be one."""
        if not 0 < rate <= FASTEST:
            raise BadInput(f"{name}: holds no sound that can be played ({samples:,} samples at {rate:g} a second)")
        values = samples * channels * max(SLOWEST / rate, 1)
        if values > self.sound_values:
            raise BadInput(
                f"{name}: {values / 1e6:,.0f} million values when it is decoded ({samples / rate:,.0f} seconds, "
                f"{channels} channels), and a sound may have {self.sound_values / 1e6:,.0f}; cut it shorter"
            )
