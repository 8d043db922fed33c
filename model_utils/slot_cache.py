"""The cache of keys and values that rows share in continuous batching."""

from transformers.cache_utils import Cache

from model_utils.fused_modules import kernels


class SlotCache(Cache):
    """Keys and values, [slots, kv_heads, length, head_dim] per layer, allocated when first
    written. fused: see Slots."""

    def __init__(self, num_slots, length, fused):
        super().__init__(layers=[])
        self.num_slots, self.length, self.fused = num_slots, length, fused
        self.keys, self.values = [], []
        # Slots and positions of the next tokens, int64 [tokens] each.
        self.write_at = None
        # How many tokens of each slot new tokens attend to, in decoding.
        self.shown = None
        # Slots and positions of all tokens of the prompts of a pass, int64 [tokens] each. None: the
        # pass has all of them.
        self.read_at = None

    def layer(self, layer_idx, new_keys, new_values):
        """A layer's keys and values. new_keys, new_values: [tokens, kv_heads, head_dim]."""
        if layer_idx == len(self.keys):
            for stored, new in ((self.keys, new_keys), (self.values, new_values)):
                stored.append(new.new_zeros(self.num_slots, new.shape[1], self.length, new.shape[2]))
        return self.keys[layer_idx], self.values[layer_idx]

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        new_keys, new_values = (states.transpose(1, 2).flatten(0, 1) for states in (key_states, value_states))
        keys, values = self.layer(layer_idx, new_keys, new_values)
        slots, positions = self.write_at
        if self.fused:
            kernels.write(new_keys, new_values, keys, values, slots, positions)
        else:
            keys[slots, :, positions], values[slots, :, positions] = new_keys, new_values
        return self.to_attend(layer_idx, key_states, value_states)

    def to_attend(self, layer_idx, key_states, value_states):
        """The keys and values for the attention of the tokens with these states."""
        layer = self.keys[layer_idx], self.values[layer_idx]
        if self.shown is not None:
            return tuple(states[:, :, : self.shown] for states in layer)
        if self.read_at is not None:
            slots, positions = self.read_at
            return tuple(states[slots, :, positions].transpose(0, 1)[None] for states in layer)
        return key_states, value_states
