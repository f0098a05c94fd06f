"""The prompt in a graph of ComfyUI: the text that the positive input of what samples is computed from.

A graph comes in two forms. The one that ran maps a node's number to its class and inputs, each a value or a link
[number, output]. The one that was drawn lists nodes with their widgets' values, and links; it is turned into the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.text import quote_value

MAX_DEPTH = 60  # nodes that a text may pass through
TEXTS = ("text", "prompt", "text_g", "t5xxl", "clip_l", "text_l", "populated_text", "wildcard_text", "string", "value",
         "tags", "caption")  # fmt: skip
JOINED = ("string_a", "string_b", "text_a", "text_b", "text1", "text2")  # of nodes that put texts together
PASSED_ON = ("conditioning", "conditioning_1", "conditioning_2", "conditioning_to", "cond", "cond1", "guider", *JOINED,
             "input", "any", "source")  # fmt: skip
MUTED = (2, 4)  # modes of a drawn node that doesn't run: muted, bypassed
Nodes = dict[str, dict[str, Any]]  # number -> {"class_type", "inputs"}


def read_nodes(graph: Mapping[str, Any]) -> Nodes:
    """The nodes of a graph that ran; {} for what is none."""
    nodes = {}
    for number, node in graph.items():
        if isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict):
            nodes[str(number)] = {"class_type": node["class_type"], "inputs": node["inputs"]}
    return nodes


def convert_workflow(workflow: Mapping[str, Any]) -> Nodes:
    """The nodes of a drawn graph, as if it had run; {} for what is none. A widget's text is taken by its name where the
    graph says it, and else as the node's only text."""
    links = {}
    for link in _items(workflow, "links"):
        if isinstance(link, list) and len(link) >= 4:
            links[link[0]] = [str(link[1]), link[2]]
        elif isinstance(link, dict) and {"id", "origin_id"} <= set(link):
            links[link["id"]] = [str(link["origin_id"]), link.get("origin_slot", 0)]
    nodes: Nodes = {}
    for node in _items(workflow, "nodes"):
        if not isinstance(node, dict) or node.get("mode") in MUTED or not isinstance(node.get("type"), str):
            continue
        inputs: dict[str, Any] = {}
        values = node.get("widgets_values")
        if isinstance(values, dict):
            inputs |= values
        elif isinstance(values, list):
            words = [value for value in values if isinstance(value, str) and value.strip()]
            inputs |= {"text": max(words, key=len)} if words else {}
            seeds = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
            inputs |= {"seed": seeds[0]} if seeds and "ampler" in node["type"] else {}
        for slot in _items(node, "inputs"):
            if isinstance(slot, dict) and slot.get("link") in links and isinstance(slot.get("name"), str):
                inputs[slot["name"]] = links[slot["link"]]
        nodes[str(node.get("id"))] = {"class_type": node["type"], "inputs": inputs}
    return nodes


def trace_prompt(nodes: Nodes) -> tuple[str, str, int | None]:
    """(prompt, negative prompt, seed) of a graph. Raises BadInput where it has several prompts, and where none is
    found."""
    samplers = [i for i in _inputs_of(nodes) if _is_link(i.get("positive")) or _is_link(i.get("guider"))]
    # some encode and sample at once; a graph without either says its one text
    ends = samplers or [inputs for inputs in _inputs_of(nodes) if any(isinstance(inputs.get(n), str) for n in TEXTS)]
    prompts: set[str] = set()
    negatives: set[str] = set()
    for inputs in ends:
        prompts.add(_find_text(nodes, inputs, "positive", 0).strip())
        if _is_link(inputs.get("negative")):
            negatives.add(_find_text(nodes, inputs, "negative", 0).strip())
    prompts, negatives = prompts - {""}, negatives - {""}
    given = (i.get(name) for i in _inputs_of(nodes) for name in ("seed", "noise_seed"))
    seeds = {value for value in given if type(value) is int}
    if not prompts:
        raise BadInput("its ComfyUI graph has no text that reaches what samples; give the prompts in a file")
    if len(prompts) > 1:
        first, second = sorted(prompts)[:2]
        raise BadInput(
            f"its ComfyUI graph has {len(prompts)} prompts, {quote_value(first)} and {quote_value(second)}; give the "
            "prompts in a file"
        )
    return prompts.pop(), negatives.pop() if len(negatives) == 1 else "", seeds.pop() if len(seeds) == 1 else None


def _find_text(nodes: Nodes, inputs: Mapping[str, Any], sign: str, depth: int) -> str:
    """The text that a node's inputs are computed from: of `sign` (positive or negative) where the node tells them
    apart."""
    own = inputs.get(sign)
    if isinstance(own, str):
        return own
    if _is_link(own):
        return _follow(nodes, own, sign, depth)
    if any(_is_link(inputs.get(other)) or isinstance(inputs.get(other), str) for other in ("positive", "negative")):
        return ""
    for name in TEXTS:  # SDXL, SD3 and FLUX give one text to several encoders
        value = inputs.get(name)
        text = value if isinstance(value, str) else _follow(nodes, value, sign, depth)
        if text.strip():
            return text
    words: dict[str, None] = {}  # each once, in order
    for name in PASSED_ON:
        value = inputs.get(name)
        text = value if isinstance(value, str) and name in JOINED else _follow(nodes, value, sign, depth)
        if text.strip():
            words.setdefault(text)
    delimiter = inputs.get("delimiter")
    return (delimiter if isinstance(delimiter, str) else ", ").join(words)


def _follow(nodes: Nodes, link: Any, sign: str, depth: int) -> str:
    node = nodes.get(str(link[0])) if _is_link(link) and depth < MAX_DEPTH else None
    return _find_text(nodes, node["inputs"], sign, depth + 1) if node else ""


def _inputs_of(nodes: Nodes) -> Iterator[Mapping[str, Any]]:
    return (node["inputs"] for node in nodes.values())


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int))


def _items(value: Mapping[str, Any], name: str) -> list:
    items = value.get(name)
    return items if isinstance(items, list) else []
