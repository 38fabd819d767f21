"""What a training would need, take and cost on chips that are not there: from the traced step, without a compiler."""
