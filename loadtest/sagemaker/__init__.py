"""SageMaker: AWS between an endpoint and its container. Its protocol is the container's own; AWS's part is here."""
