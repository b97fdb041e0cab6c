"""Amazon SQS and SNS for `messaging`: `sqs://region`, credentials by the AWS chain."""

from messaging_sqs.adapter import SQSAdapter
from messaging_sqs.settings import SQSSettings

__all__ = ["SQSAdapter", "SQSSettings"]
