"""The batch lane: files, batches, their lines, the scheduler and providers' batch APIs."""
