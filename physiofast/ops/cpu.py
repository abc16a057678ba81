"""The forms of ops that are faster on a CPU than their twin; each is tested against the twin like a kernel."""

from physiofast.ops.cpu_attention import modality_attention as modality_attention
from physiofast.ops.cpu_attention import modality_attention_backward as modality_attention_backward
from physiofast.ops.cpu_loss import linear_masked_mse as linear_masked_mse
from physiofast.ops.cpu_loss import masked_mse as masked_mse
from physiofast.ops.cpu_plan import sample_plan as sample_plan
from physiofast.ops.cpu_tokens import assemble_tokens as assemble_tokens
from physiofast.ops.cpu_tokens import assemble_tokens_backward as assemble_tokens_backward
from physiofast.ops.cpu_tokens import embed_patches as embed_patches
from physiofast.ops.cpu_tokens import embed_patches_backward as embed_patches_backward
from physiofast.ops.cpu_tokens import take_hidden as take_hidden
from physiofast.ops.cpu_tokens import take_hidden_backward as take_hidden_backward
from physiofast.ops.cpu_tokens import take_tokens as take_tokens
from physiofast.ops.cpu_tokens import take_tokens_backward as take_tokens_backward
