"""LLaVA-Pretrain as it is published, with made-up captions."""

import json
from pathlib import Path

from PIL import Image as Picture

from adapter_root import Root

ASK = "Render a clear and concise summary of the photo."


def build(folder: Path) -> Root:
    (folder / "images/00453").mkdir(parents=True)
    Picture.new("RGB", (6, 4)).save(folder / "images/00453/004539375.jpg")
    image = "00453/004539375.jpg"
    rows = [
        {"id": "004539375", "image": image, "conversations": [
            {"from": "human", "value": f"{ASK}\n<image>"}, {"from": "gpt", "value": "select luxury furniture"}]},
        {"id": "002239345", "image": image, "conversations": [
            {"from": "human", "value": f"<image>\n{ASK}"}, {"from": "gpt", "value": "a grey room"}]},
        {"id": "003", "conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": "no picture"}]},
        {"id": "004", "image": "../../outside.png", "conversations": [
            {"from": "human", "value": f"<image>\n{ASK}"}, {"from": "gpt", "value": "elsewhere"}]},
    ]  # fmt: skip
    (folder / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(rows))
    (folder / "blip_laion_cc_sbu_558k_meta.json").write_text("[]")
    return Root(folder, {("train", "llava_pretrain/caption"): 2}, {"train": 2})
