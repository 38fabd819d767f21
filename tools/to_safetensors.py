"""Turns weights that were published as PyTorch's own files into model.safetensors, which looplm reads.

python tools/to_safetensors.py FOLDER          needs torch; reads FOLDER/pytorch_model.bin or FOLDER/model.pt
"""

from pathlib import Path
from typing import Annotated

import typer

FILES = ("pytorch_model.bin", "model.pt")


def main(folder: Annotated[Path, typer.Argument(help="Folder of a downloaded model.")]) -> None:
    import torch
    from safetensors.torch import save_file

    found = next((folder / name for name in FILES if (folder / name).exists()), None)
    if found is None:
        raise typer.BadParameter(f"{folder} holds neither {' nor '.join(FILES)}")
    # weights_only: a pickle from elsewhere runs no code.
    tensors = torch.load(found, map_location="cpu", weights_only=True)
    # Tied tensors share memory, which safetensors refuses.
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    print(f"{len(tensors)} tensors of {found.name} written to {folder / 'model.safetensors'}")


if __name__ == "__main__":
    typer.run(main)
