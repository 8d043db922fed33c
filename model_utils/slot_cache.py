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
        # The number of each slot's tokens for attention; None: only the new tokens.
        self.shown = None

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        if layer_idx == len(self.keys):
            for stored, states in ((self.keys, key_states), (self.values, value_states)):
                stored.append(states.new_zeros(self.num_slots, states.shape[1], self.length, states.shape[3]))
        slots, positions = self.write_at
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        new_keys, new_values = (states.transpose(1, 2).flatten(0, 1) for states in (key_states, value_states))
        if self.fused:
            kernels.write(new_keys, new_values, keys, values, slots, positions)
        else:
            keys[slots, :, positions], values[slots, :, positions] = new_keys, new_values
        if self.shown is None:
            return key_states, value_states
        return keys[:, :, : self.shown], values[:, :, : self.shown]
