"""The Gradio app: the same prompts through several contestants, live, judged by rewards and by an oracle where there is one.

Thin on purpose: a comparison here is a run like any other, with a run folder, a report, and a command that repeats it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gradio as gr

from workbench import catalogue, config, findings, run, store
from workbench.media import Media, quantise
from workbench.types import BadInput

ABOUT = """# Media Alignment Workbench
One prompt or several, one a line. Each contestant makes the same prompts from the same noise; the rewards that were
optimised are marked, the others only watched."""


def compare(prompts: str, pipeline: str, contestants: list[str], reward: str, iterations: int, seed: int, runs: Path):
    """Yields (gallery, table, note): previews while the contestants work, the judged result at the end."""
    lines = [line for line in prompts.splitlines() if line.strip()]
    settings = {"base": "sample", "best of n": {"name": "best_of_n", "n": iterations + 1}}
    settings["ReNO"] = {"name": "reno", "iterations": iterations}
    chosen = {name.replace(" ", "_"): settings[name] for name in ("base", "best of n", "ReNO") if name in contestants}
    watch = [n for n in ("oracle", "starter_clip") if pipeline.startswith("starter") and n != reward]
    try:
        wanted = config.check(
            config.RunConfig(
                pipeline, reward, lines, contestants=chosen, watch=watch or None, name="app", seed=int(seed), batch=16
            )
        )
        plan = run.plan(wanted)
        run.room(plan, runs)
        folder = store.RunFolder.open(runs, "app", dataclasses.asdict(wanted), fresh=True)
        shown: dict[tuple, tuple] = {}
        for p in run.execute(plan, folder):
            if p.event is None or p.event.media is None:
                continue
            for b, prompt in enumerate(p.event.prompts):
                shown[p.contestant, p.event.seeds[b]] = (picture(p.event.media, b), f"{p.contestant}: {prompt}")
            yield list(shown.values()), None, f"{p.contestant}, step {p.event.step}"
    except BadInput as error:
        raise gr.Error(str(error), print_exception=False) from None
    summary = folder.read("summary.json")
    said = [*findings.headline(summary), f"Run folder: `{folder.path}`"]
    yield list(shown.values()), rows(summary), "  \n".join(said)


def rows(summary: dict) -> dict:
    """The summary as a table: a contestant a row, its reward marked where it optimised it."""
    names = list(summary["contestants"][0].get("rewards", {}))
    head = ["contestant", *names, "denoiser calls", "seconds"]
    body = []
    for c in summary["contestants"]:
        if "failed" in c:
            body.append([c["name"], f"failed: {c['failed']}"] + [""] * (len(head) - 2))
            continue
        marks = [
            f"{findings.number(r['mean'])}{' (optimised)' if r['optimised'] else ''}" for r in c["rewards"].values()
        ]
        body.append([c["name"], *marks, c["nfe"], findings.number(c["seconds"])])
    return {"headers": head, "data": body}


def picture(media: Media, row: int):
    """[H,W,3] uint8 of one row."""
    return (quantise(media[row].detach()).data[0] * 255).byte().permute(1, 2, 0).cpu().numpy()


def build(runs: Path) -> gr.Blocks:
    images = [row["name"] for row in catalogue.pipelines() if row["modality"] == "image"]
    rewards = [r["name"] for r in catalogue.rewards() if "image" in r["modality"] and r["gradient"] == "yes"]
    with gr.Blocks(title="Media Alignment Workbench") as app:
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=1):
                prompts = gr.Textbox(
                    "a red circle above a blue square\nthree green triangles", label="Prompts", lines=3
                )
                pipeline = gr.Dropdown(images, value="starter-image", label="Pipeline")
                contestants = gr.CheckboxGroup(
                    ["base", "best of n", "ReNO"], value=["base", "best of n", "ReNO"], label="Contestants"
                )
                reward = gr.Dropdown(rewards, value="starter_clip", label="Reward to optimise")
                iterations = gr.Slider(1, 100, 20, step=1, label="Iterations (best of n draws one more)")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                with gr.Row():
                    go, stop = gr.Button("Compare", variant="primary"), gr.Button("Stop")
            with gr.Column(scale=2):
                gallery = gr.Gallery(label="Contestants", columns=3, format="png", object_fit="contain", height=520)
                note = gr.Markdown()
                table = gr.Dataframe(label="Judged", interactive=False, wrap=True)
        inputs = [prompts, pipeline, contestants, reward, iterations, seed]

        def handler(*values):
            yield from compare(*values, runs=runs)

        job = go.click(handler, inputs, [gallery, table, note], concurrency_limit=1, api_name="compare")
        stop.click(None, cancels=[job])
    return app


def serve(runs: Path, port: int) -> None:
    """On the loopback interface only."""
    build(runs).queue().launch(server_name="127.0.0.1", server_port=port, allowed_paths=[], show_error=False)


if __name__ == "__main__":
    serve(Path("runs"), 7860)
