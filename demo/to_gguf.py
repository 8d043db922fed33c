"""Writes an export of the demo as a GGUF file for llama.cpp.

pip install gguf==0.19.0
python -m demo.to_gguf runs/demo/export runs/demo/export.gguf                   # float16
python -m demo.to_gguf runs/demo/export runs/demo/export.gguf --weights q8_0    # or f32

llama.cpp's own convert_hf_to_gguf.py refuses the demo's tokenizer: it recognises tokenizers by a
hash of their token ids, and a tokenizer of one's own has no known hash. llama.cpp has no split like
PIECES in demo/model.py either, and needs none: tokens never cross a border of PIECES, so merging
the whole text gives the same tokens as merging each piece. "superbpe" splits only at numbers, and
digits never merge. Ids differ only if an upper-case token takes a capital of the next piece: U RL
s, and U R L s in training, of URLs."""

import argparse
import json
from pathlib import Path

import gguf
from safetensors.torch import load_file

from demo.model import END_TOKEN

# Weights of matrices. Vectors stay in float32.
TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="a folder that export.py wrote")
    parser.add_argument("output", help="the GGUF file")
    parser.add_argument("--weights", choices=TYPES, default="f16")
    args = parser.parse_args()
    if not (args.export / "config.json").is_file():
        parser.error(f"{args.export} is not an export: it has no config.json")
    return args


def main(args: argparse.Namespace) -> None:
    config = read_json(args.export / "config.json")
    matrix_type, file_type = TYPES[args.weights]
    writer = gguf.GGUFWriter(args.output, "qwen3")
    writer.add_name("demo")
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_config(writer, config)
    add_tokenizer(writer, args.export)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for name, tensor in load_file(args.export / "model.safetensors").items():
        tensor = tensor.float().numpy()
        tensor_type = matrix_type if tensor.ndim > 1 else gguf.GGMLQuantizationType.F32
        quantized = gguf.quants.quantize(tensor, tensor_type)
        writer.add_tensor(names.get_name(name, (".weight",)), quantized, raw_dtype=tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"The model for llama.cpp: {args.output}")


def add_config(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_sampling_temp(0.0)  # greedy, as measured


def add_tokenizer(writer: gguf.GGUFWriter, export: Path) -> None:
    model = read_json(export / "tokenizer.json")["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")  # a byte-level BPE
    writer.add_tokenizer_pre("superbpe")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token == END_TOKEN else normal for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(model["vocab"][END_TOKEN])
    writer.add_pad_token_id(model["vocab"][END_TOKEN])
    writer.add_chat_template((export / "chat_template.jinja").read_text(encoding="utf-8"))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(parse_arguments())
