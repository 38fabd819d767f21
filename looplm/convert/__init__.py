"""From folders of Hugging Face to runs, and back: `looplm convert`."""
